"""Images in, tables out: storage, the run layout, masks, the bulk run, data sets and results."""
