"""Whether two mathematical answers are equal: from text to syntax trees to values."""
