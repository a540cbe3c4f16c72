import nbclient
import nbformat
import pytest
from running import ROOT


@pytest.mark.slow
def test_the_notebook_runs_on_the_demo() -> None:
    notebook = nbformat.read(ROOT / "docs" / "demo.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("similarity" in output.get("data", {}).get("text/html", "") for output in outputs)
