"""Files are replaced whole, through links; pipes are written in place."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlx_gemma_mtp.files.atomic import write_whole


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"before")
    link.symlink_to(file)
    write_whole(link, b"after")
    assert link.is_symlink()
    assert file.read_bytes() == b"after"
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        write_whole(pipe, b"content")
    assert (read.result(), pipe.is_fifo()) == (b"content", True)
