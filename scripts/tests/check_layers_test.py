#!/usr/bin/env python3
"""What check_layers.py must find in planted trees."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from check_layers import check  # noqa: E402


class CheckLayers(unittest.TestCase):
    def found(self, files):
        return "\n".join(check(files))

    def test_a_tree_without_arrows_back_passes(self):
        self.assertEqual(self.found({
            "kernels/common/a.h": "#include <vector>\n",
            "kernels/op/b.cuh": '#include "kernels/common/a.h"\n',
            "lib/core/c.h": '#include "kernels/common/a.h"\n',
            "lib/core/tests/c_test.cpp": '#include <gtest/gtest.h>\n#include "lib/eval/d.h"\n',
            "lib/eval/d.h": '#include "lib/core/c.h"\n',
            "app/main.cpp": '#include "lib/eval/d.h"\n#include <CLI/CLI.hpp>\n',
        }), "")

    def test_a_circle_of_folders_is_named_with_its_includes(self):
        found = self.found({
            "lib/a/x.h": '#include "lib/b/x.h"\n',
            "lib/b/x.h": "",
            "lib/b/sub/y.h": '#include "lib/c/x.h"\n',
            "lib/c/x.h": '\n#include "lib/a/x.h"\n',
        })
        self.assertIn("lib/a -> lib/b -> lib/c -> lib/a", found)
        self.assertIn("lib/c/x.h:2: includes lib/a/x.h", found)

    def test_upward_includes(self):
        self.assertIn("kernels/ is below lib/", self.found(
            {"kernels/a/x.h": '#include "lib/core/y.h"\n', "lib/core/y.h": ""}))
        self.assertIn("lib/ is below app/", self.found(
            {"lib/a/x.cpp": '#include "app/y.h"\n', "app/y.h": ""}))

    def test_device_code_includes_no_host_library(self):
        for include in ("<fmt/format.h>", "<nlohmann/json.hpp>", "<Eigen/Dense>", '"lib/core/y.h"'):
            self.assertIn("device code includes", self.found(
                {"kernels/a/x.cu": f"#include {include}\n", "lib/core/y.h": ""}), include)
        self.assertIn("host code includes no device code", self.found(
            {"lib/a/x.cpp": '#include "kernels/a/y.cuh"\n', "kernels/a/y.cuh": ""}))

    def test_packages_have_owners_and_the_program_includes_no_test(self):
        self.assertIn("belongs to app/", self.found({"lib/a/x.cpp": "#include <CLI/CLI.hpp>\n"}))
        self.assertIn("GoogleTest", self.found({"lib/a/x.cpp": "#include <gtest/gtest.h>\n"}))
        self.assertIn("only tests build", self.found(
            {"lib/a/x.cpp": '#include "lib/testing/y.h"\n', "lib/testing/y.h": ""}))

    def test_a_missing_file_is_named(self):
        self.assertIn("no such file", self.found({"lib/a/x.cpp": '#include "lib/b/y.h"\n'}))


if __name__ == "__main__":
    unittest.main()
