"""Which faults the benchmark `mutants` plants, and where."""

import ast

from tests.benchmarks._mutation import mutants

SOURCE = """\
WORD = "a\u2028b"

def paid(é: int) -> int:
    return max("ü", "ö") + é < é

@staticmethod
def held(n):
    if n: return 1
"""


def test_each_edit_is_made_where_its_operator_stands_whatever_letters_are_before_it(tmp_path):
    file = tmp_path / "room.py"
    file.write_text(SOURCE)
    found = {(m.operator, m.line): m for m in mutants(file)}
    assert {key: (m.before, m.after) for key, m in found.items()} == {
        ("comparison", 4): ("<", "<="),
        ("arithmetic", 4): ("+", "-"),
        ("extreme", 4): ("max", "min"),
        ("condition", 8): ("n", "not (n)"),
        ("number", 8): ("1", "2"),
    }
    assert found["comparison", 4].named(SOURCE) == f'{tmp_path.name}/room.py: return max("ü", "ö") + é <= é'
    assert [found[key].function_line for key in (("extreme", 4), ("number", 8))] == [3, 6]
    for mutant in found.values():
        assert ast.dump(ast.parse(mutant.applied(SOURCE))) != ast.dump(ast.parse(SOURCE))
