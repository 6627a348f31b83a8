"""What a code is outside the model: the `.alit` file, a picture and its codes, its lengths, and figures of them."""
