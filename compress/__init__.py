"""Methods that make a network smaller: keras.Model -> keras.Model, one method a file."""
