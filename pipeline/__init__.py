"""From a conf file to Parquet in a store: design, cohorts, training, measurement, records."""
