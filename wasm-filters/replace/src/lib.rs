//! Replaces texts in responses as they stream.
//!
//! A text that two chunks share is found too: the host shows the end of a chunk again, with the next one. See `README.md`
//! for the configuration.

mod config;
mod media;
mod rules;

use beamline_sdk::{
    Chunk, ChunkVerdict, Filter, HeaderError, Request, ResponseBodyFilter, ResponseFilter, ResponseHead,
    ResponseVerdict, Verdict, context, log,
};

use crate::config::Config;

/// The filter.
struct Replace;

/// What the body's phase is told by the head's: replace. Without it, nothing is.
const YES: &[u8] = b"y";

impl Filter for Replace {
    type Config = Config;

    fn on_request(_: &Config, request: &mut Request) -> Verdict {
        // Bodies that can be read, and whole ones: a part of a body that is changed fits no other part of it.
        let asked =
            request.set_header("accept-encoding", "identity").and_then(|()| request.remove_header("range"));
        if let Err(error) = asked {
            log::warn!("the upstream could not be asked for a plain body: {error:?}");
        }
        Verdict::next()
    }
}

impl ResponseFilter for Replace {
    type Config = Config;

    fn on_response(config: &Config, _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        if !is_meant(config, response) {
            return ResponseVerdict::next();
        }
        match tell(response) {
            Ok(()) => context::set(YES).expect("one byte is short"),
            Err(error) => log::warn!("nothing is replaced: the head could not be made to fit: {error:?}"),
        }
        ResponseVerdict::next()
    }
}

/// Whether a response has a body of text that is plain and whole, and may be changed (RFC 9110, section 7.7).
fn is_meant(config: &Config, response: &ResponseHead) -> bool {
    let [content_type, encoding, range] =
        response.headers(["content-type", "content-encoding", "content-range"]);
    let cache_control = response.header_all("cache-control");
    let mut directives = cache_control.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    response.status() != 206
        && range.is_none()
        && encoding.is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
        && content_type
            .is_some_and(|value| config.content_types.iter().any(|wanted| wanted.holds(value.as_bytes())))
        && !directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
}

/// Makes the head true of a body that is changed.
fn tell(response: &mut ResponseHead) -> Result<(), HeaderError> {
    for digest in ["content-digest", "repr-digest", "digest", "content-md5", "accept-ranges"] {
        response.remove_header(digest)?;
    }
    // The same origin's body is changed in the same way, so its validator still tells versions apart, but bytes it does not promise.
    if let Some(tag) = response.header("etag").filter(|tag| !tag.as_bytes().starts_with(b"W/")) {
        response.set_header("etag", [b"W/", tag.as_bytes()].concat())?;
    }
    Ok(())
}

impl ResponseBodyFilter for Replace {
    type Config = Config;

    fn on_response_chunk(config: &Config, _: &Request, _: &ResponseHead, chunk: Chunk) -> ChunkVerdict {
        if context::get().as_deref() != Some(YES) {
            return ChunkVerdict::pass();
        }
        let replaced = config.rules.replace(chunk.bytes(), chunk.is_last());
        match replaced.data {
            None if replaced.left == 0 => ChunkVerdict::pass(),
            None if replaced.left == chunk.bytes().len() => ChunkVerdict::hold(),
            None => {
                let done = &chunk.bytes()[..chunk.bytes().len() - replaced.left];
                ChunkVerdict::replace(done).again(replaced.left).into()
            }
            Some(data) => ChunkVerdict::replace(data).again(replaced.left).into(),
        }
    }
}

beamline_sdk::export!(Replace: request, response, response_body);

#[cfg(test)]
mod tests;
