"""Pictures in: one source of files, folders, parquet files, tars and data sets on the Hub."""
