"""What the labs say in their own folders, and what sorter tells them there.

`files` are their rules, `scans` and `news` the pages that answer without being asked, `requests` what they ask for.
`corners` joins all of it with the workers of the labs, who alone touch their folders.
"""
