"""The definitions of the plugins for Meltano Hub, and the program that writes them (`./dev hub`)."""
