//! What is refused, and what the user is told.
