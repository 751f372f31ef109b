"""The brands that come with zonemgr, one folder each.  They are loaded by path, exactly like drop-ins."""
