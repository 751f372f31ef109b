"""Registration with systemd-machined happens where systemd runs (contrib/vm shows it), and nowhere else."""

from __future__ import annotations

import os

import pytest

from zonemgr.linux import machined


def test_the_folder_of_machines_alone_does_not_mean_that_systemd_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machines, booted = (tmp_path_factory.mktemp(name) for name in ("machines", "system"))
    monkeypatch.setattr(machined, "FOLDER", str(machines))
    monkeypatch.setattr(machined, "_BOOTED", str(booted))
    assert machined.is_there()
    os.rmdir(booted)
    assert not machined.is_there()
