//! The built-in app.
