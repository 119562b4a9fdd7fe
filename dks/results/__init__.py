"""Ablation tables: from the records of runs to rows and columns, and to text."""
