"""The paper's experiments, each a command: `alit analyze NAME --data D --output DIR`. Nothing is imported here.

An analysis is one file in `experiments/` and one line in `registry.py`. The file defines a subclass of [`Analysis`]
(`analysis.py`) and names it `ANALYSIS`. What it declares:

- Its fields are its options: keyword-only dataclass fields, given by `add_arguments` under the same names.
- `data_options` says which data sets it takes, `columns` which columns they must have besides `image`, `default_limit`
  how many images of each it uses.
- `check(context)`: checks before any work; raises `SettingsError`. Networks are loaded here
  (`functools.cached_property`).
- `measure(context, batch)`: one dictionary for each image of an [`ImageBatch`], of plain numbers, strings, bytes and
  lists of them. It is stored, and must depend only on the model, the image with its columns, and `measure_settings`.
  Everything that depends on the set of images belongs in `summarize`.
- `summarize(context, table)`: the results, in JSON's types, from a `pandas.DataFrame` with a row for each image:
  `data` (which of `data_options`), `index`, `image` (its name), `columns`, and what `measure` returned.
- `finding(results)`: what the results say, in one line.
- `draw(context, table, results)`: the figure.

`run.run_analysis` does the rest: it draws the sample of images, reads them, shows progress, shares them between
processes, stores the measurements batch by batch in parquet and reuses them (`store.py`).

If there are too few data for a number, the results and the finding say so instead (`statistics.py`).
"""
