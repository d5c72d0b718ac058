"""What models say beside text: calls of functions and thoughts, found in the text as it comes."""
