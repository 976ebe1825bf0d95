from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import alembic.autogenerate
import alembic.migration
import pytest

from kleash.data.group import Group, Preference, Response
from kleash.errors import DataError, InputError
from kleash.labels.labeller import LabelResult
from kleash.labels.schema import Base
from kleash.labels.store import Call, Revision, Store

Pairs = Callable[[int], list[Group]]


def test_the_migrations_make_the_tables_that_the_code_reads(store: Store) -> None:
    with store.engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, Base.metadata) == []


def test_a_store_is_opened_again_with_all_that_is_in_it(tmp_path: Path, pairs: Pairs) -> None:
    first = Store.open(tmp_path / "labels.db")
    first.add_tasks(pairs(3))
    first.close()
    assert len(Store.open(tmp_path / "labels.db").tasks()) == 3


@pytest.mark.parametrize("where", ["a text", "mysql://nobody@here/labels", "postgresql+psycopg://x@/y?host=/nowhere"])
def test_a_file_that_is_not_a_store_is_an_error_of_one_line(tmp_path: Path, where: str) -> None:
    if where == "a text":
        (tmp_path / "labels.db").write_text("no database, whatever its ending says " * 100)
        where = str(tmp_path / "labels.db")
    with pytest.raises(InputError, match="cannot be opened as a label store") as caught:
        Store.open(where)
    assert "\n" not in str(caught.value)


def test_the_password_of_a_database_is_not_printed() -> None:
    with pytest.raises(InputError) as caught:
        Store.open("postgresql+psycopg://x:secret@/y?host=/nowhere")
    assert "secret" not in str(caught.value)


def test_the_same_pair_is_one_task_whichever_response_comes_first(store: Store, pairs: Pairs) -> None:
    groups = pairs(2)
    turned = [replace(group, responses=group.responses[::-1]) for group in groups]
    assert (store.add_tasks(groups), store.add_tasks(groups), store.add_tasks(turned)) == (2, 0, 0)


def test_a_group_of_k_is_all_its_pairs(store: Store) -> None:
    assert store.add_tasks([Group("p", tuple(Response(text) for text in "abcd"))]) == 6


def test_turns_and_odd_characters_come_back_as_they_were(store: Store) -> None:
    prompt = ({"role": "user", "content": "nul \0, Ω, \U0001f600, ‮turned"},)
    answer = Response(({"role": "assistant", "content": "<b>&"},), finished=False)
    store.add_tasks([Group(prompt, (answer, Response("")))])
    (group,) = store.tasks().values()
    assert (group.prompt, group.responses) == (prompt, (answer, Response("")))


def test_a_practice_pair_needs_an_answer(store: Store, pairs: Pairs) -> None:
    with pytest.raises(DataError, match="row 1 has no preference"):
        store.add_tasks(pairs(1), kind="practice")
    assert store.add_tasks([replace(pairs(1)[0], label=Preference())], kind="practice") == 1
    assert store.tasks() == {}


def test_a_token_is_valid_for_one_role_until_revoked_and_is_not_stored(store: Store) -> None:
    one, two = store.invite("one"), store.invite("two", role="admin")
    stored = store.annotator_of(one.token)
    assert stored is not None and (stored.id, stored.role) == (one.annotator, "annotator")
    assert store.annotator_of(one.token + "x") is None
    store.revoke(one.annotator)
    assert store.annotator_of(one.token) is None and store.annotator_of(two.token) is not None
    if store.engine.dialect.name == "sqlite":
        files = Path(str(store.engine.url.database)).parent.iterdir()
        assert not any(two.token.encode() in file.read_bytes() for file in files)


def test_a_judgement_is_stored_once_for_either_order_of_the_pair(store: Store, pairs: Pairs) -> None:
    (group,) = pairs(1)
    turned = replace(group, responses=group.responses[::-1])
    assert store.record([group], [LabelResult("preference", "judge-7b", 0.8, principle="kind")]) == 1
    assert store.record([group], [LabelResult("preference", "judge-7b", 0.8, principle="kind")]) == 0
    assert store.record([turned], [LabelResult("preference", "other", 0.8)]) == 1
    first, second = store.votes()
    assert (first.probability, first.principle, first.alias) == (0.8, "kind", "judge-7b")
    assert second.probability == pytest.approx(0.2)
    assert len(store.tasks()) == 1


def test_a_repeated_judgement_counts_once(store: Store, pairs: Pairs) -> None:
    for probability in (0.8, 0.6):
        store.record(pairs(1), [LabelResult("preference", "judge", probability)])
    assert [(vote.probability, vote.counts) for vote in store.votes()] == [(0.8, False), (0.6, True)]


def test_a_call_is_stored_by_its_key_and_a_reply_replaces_a_failure(store: Store) -> None:
    failed = Call("k" * 64, "m", {"prompt": "\0"}, "error", cost=0.5)
    store.save_call(failed)
    assert store.call("k" * 64) == failed and store.call("x" * 64) is None
    store.save_call(replace(failed, state="verdict", response={"p": 1.0}, cost=0.25, prompt_tokens=3))
    stored = store.call("k" * 64)
    assert stored is not None and (stored.state, stored.response, stored.prompt_tokens) == ("verdict", {"p": 1.0}, 3)
    assert store.spent() == 0.25


def test_revisions_come_back_in_order(store: Store) -> None:
    both = [Revision(({"role": "user", "content": "p"},), "o", "c", f"r{i}", "kind", i, "m", i == 1) for i in range(2)]
    for revision in both:
        store.save_revision(revision)
    assert store.revisions() == both


def test_guidelines_change_their_version_only_with_their_text(store: Store) -> None:
    assert store.guidelines() is None
    assert [store.set_guidelines(text).version for text in ("a", "a", "b")] == [1, 1, 2]
    stored = store.guidelines()
    assert stored is not None and (stored.version, stored.text) == (2, "b")
