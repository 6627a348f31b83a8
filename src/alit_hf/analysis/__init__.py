"""The paper's experiments, each a command: `alit analyze NAME --data D --output DIR`. Nothing is imported here.

An analysis is one file in `experiments/` and one line in `registry.py`. The file defines a subclass of [`Analysis`]
(`analysis.py`) and names it `ANALYSIS`. What it says of itself:

- Its fields are its options: keyword-only dataclass fields, given by `add_arguments` under the same names.
- `data_options` says which data sets it takes, `columns` what they must have beside `image`, `default_limit` how many
  images of each it looks at.
- `check(context)`: what has to hold before any work; raises `SettingsError`. Networks are loaded here
  (`functools.cached_property`).
- `measure(context, batch)`: one dictionary for each image of an [`ImageBatch`], of plain numbers, strings, bytes and
  lists of them. It is stored, and must depend on nothing but the model, the image with its columns, and what
  `measure_settings` gives. Everything that depends on which images there are belongs to `summarize`.
- `summarize(context, table)`: the numbers, as JSON takes them, of a `pandas.DataFrame` with a row for each image:
  `data` (which of `data_options`), `index`, `image` (its name), `columns`, and what `measure` gave.
- `finding(results)`: what they say, in one line.
- `draw(context, table, results)`: the figure.

`run.run_analysis` does the rest: it draws the sample of images, reads them, shows progress, shares them between
processes, stores what was measured batch by batch in parquet and takes it up again (`store.py`).

What too little data do not tell is said in place of a number (`statistics.py`), in the results and in the finding.
"""
