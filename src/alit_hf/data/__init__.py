"""Pictures in: files, folders, parquet files and data sets on the Hub."""
