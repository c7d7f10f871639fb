"""What Meltano Hub asks of the two plugins, written by `./dev hub`."""
