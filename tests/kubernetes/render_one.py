"""
Prints one object of the chart's variant with the operator, as JSON: the first of KIND.

    .tools/python/bin/python tests/kubernetes/render_one.py helm/atm KIND
"""

import json
import sys

import helm_python as helm

import check_chart
import manifests


def main():
    chart, kind = sys.argv[1:]
    (values,) = [values for name, values, _ in check_chart.matrix() if name == "operator"]
    for text in helm.Chart.load(chart).render(values, name="prod", namespace="atm").values():
        if f"kind: {kind}\n" not in text:
            continue
        for document in manifests.load(text):
            if document["kind"] == kind:
                return print(json.dumps(document))
    sys.exit(f"the chart renders no {kind}")


if __name__ == "__main__":
    main()
