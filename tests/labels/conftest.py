"""A store on SQLite, and on a real PostgreSQL where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kleash.data.group import Group, Response
from kleash.labels.store import Store
from tests.programs import needs


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, gone at the end."""
    programs = needs("postgresql")
    folder = Path(tempfile.mkdtemp(prefix="kleash-pg-"))
    as_user: dict[str, int] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid}

    def run(name: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / name), *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL, **as_user
        )  # fmt: skip

    run("initdb", "-D", f"{folder}/data", "-U", "kleash", "--auth=trust", "--no-sync")
    settings = f"-k {folder} -c listen_addresses='' -c max_connections=200"
    run("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", settings, "start")
    yield f"postgresql+psycopg://kleash@/postgres?host={folder}"
    run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store; the test runs on each kind of database."""
    if request.param == "sqlite":
        made = Store.open(tmp_path / "labels.db")
    else:
        url = request.getfixturevalue("postgres")
        clear(url)
        made = Store.open(url)
    yield made
    made.close()


def clear(url: str) -> None:
    """Drop all tables of a PostgreSQL database."""
    from sqlalchemy import create_engine

    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()


@pytest.fixture
def pairs() -> Callable[[int], list[Group]]:
    """So many groups of two responses, the second longer in every other one."""

    def make(count: int) -> list[Group]:
        return [
            Group(f"prompt {i}", (Response(f"answer {i}"), Response(f"another {'longer ' * (i % 2)}answer {i}")))
            for i in range(count)
        ]

    return make
