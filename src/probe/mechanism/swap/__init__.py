"""The text swap: the persona's own texts read under others, and what is told by them. Knows tables of reads."""
