//! Listeners, HTTP serving and the request pipeline.
