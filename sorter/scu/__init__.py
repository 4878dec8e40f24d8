"""The sending side: what sorter asks of others. C-ECHO, C-STORE, storage commitment and its reports, C-FIND, C-MOVE."""
