//! The phases of a module: which of them it exports, found out once, when it is loaded.

use wasmtime::component::{Instance, InstancePre};

use crate::{
    bindings::exports::beamline::edge::{
        finish_handler, request_body_handler, request_handler, response_body_handler, response_handler,
        whole_request_handler, whole_response_handler,
    },
    host::Running,
    inspect::ModuleInfo,
};

/// One phase of a request's life that a module can take part in, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The request's head.
    Request,
    /// The request's head and whole body.
    WholeRequest,
    /// The request's body, chunk by chunk.
    RequestBody,
    /// The response's head.
    Response,
    /// The response's head and whole body.
    WholeResponse,
    /// The response's body, chunk by chunk.
    ResponseBody,
    /// After the last byte.
    Finish,
}

impl Phase {
    /// Every phase, in the order of a request's life.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::WholeRequest,
        Self::RequestBody,
        Self::Response,
        Self::WholeResponse,
        Self::ResponseBody,
        Self::Finish,
    ];

    /// As logs and spans name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::WholeRequest => "whole-request",
            Self::RequestBody => "request-body",
            Self::Response => "response",
            Self::WholeResponse => "whole-response",
            Self::ResponseBody => "response-body",
            Self::Finish => "finish",
        }
    }

    /// The interface whose export makes a module take part.
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Request => "beamline:edge/request-handler@0.1.0",
            Self::WholeRequest => "beamline:edge/whole-request-handler@0.1.0",
            Self::RequestBody => "beamline:edge/request-body-handler@0.1.0",
            Self::Response => "beamline:edge/response-handler@0.1.0",
            Self::WholeResponse => "beamline:edge/whole-response-handler@0.1.0",
            Self::ResponseBody => "beamline:edge/response-body-handler@0.1.0",
            Self::Finish => "beamline:edge/finish-handler@0.1.0",
        }
    }

    /// The phase that an exported interface is, or none.
    pub(crate) fn of_interface(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.interface() == name)
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Some of the phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PhaseSet(u8);

impl PhaseSet {
    /// Those that a module exports.
    pub(crate) fn of(info: &ModuleInfo) -> Self {
        Self(info.phases.iter().filter_map(|name| Phase::of_interface(name)).fold(0, |set, p| set | p.bit()))
    }

    /// Whether `phase` is one of them.
    pub(crate) const fn has(self, phase: Phase) -> bool {
        self.0 & phase.bit() != 0
    }

    /// Whether one of them comes after what is decided on the request's head.
    pub(crate) const fn has_later(self) -> bool {
        self.0 & !Phase::Request.bit() != 0
    }

    /// These.
    pub(crate) const fn only<const N: usize>(phases: [Phase; N]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < N {
            set |= phases[at].bit();
            at += 1;
        }
        Self(set)
    }

    /// Whether one of these is one of those.
    pub(crate) const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether a request comes to one of them, and to that once: bodies come in many chunks.
    pub(crate) const fn is_one_call(self) -> bool {
        let chunks = Self::only([Phase::RequestBody, Phase::ResponseBody]);
        self.0.count_ones() <= 1 && !self.meets(chunks)
    }

    /// These and those.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where in a module each phase's function is.
pub(crate) struct PhaseExports {
    request: Option<request_handler::GuestIndices>,
    whole_request: Option<whole_request_handler::GuestIndices>,
    request_body: Option<request_body_handler::GuestIndices>,
    response: Option<response_handler::GuestIndices>,
    whole_response: Option<whole_response_handler::GuestIndices>,
    response_body: Option<response_body_handler::GuestIndices>,
    finish: Option<finish_handler::GuestIndices>,
}

/// Makes one method for each phase that gives its function in an instance.
macro_rules! guests {
    ($($field:ident: $interface:ident),* $(,)?) => {$(
        pub(crate) fn $field(
            &self,
            store: impl wasmtime::AsContextMut,
            instance: &Instance,
        ) -> wasmtime::Result<$interface::Guest> {
            match &self.$field {
                Some(indices) => indices.load(store, instance),
                None => wasmtime::bail!(concat!("the module exports no ", stringify!($interface))),
            }
        }
    )*};
}

impl PhaseExports {
    /// Looks up those that `info` names.
    pub(crate) fn find(pre: &InstancePre<Running>, info: &ModuleInfo) -> wasmtime::Result<Self> {
        let set = PhaseSet::of(info);
        let wanted = |phase| set.has(phase).then_some(());
        Ok(Self {
            request: wanted(Phase::Request).map(|()| request_handler::GuestIndices::new(pre)).transpose()?,
            whole_request: wanted(Phase::WholeRequest)
                .map(|()| whole_request_handler::GuestIndices::new(pre))
                .transpose()?,
            request_body: wanted(Phase::RequestBody)
                .map(|()| request_body_handler::GuestIndices::new(pre))
                .transpose()?,
            response: wanted(Phase::Response)
                .map(|()| response_handler::GuestIndices::new(pre))
                .transpose()?,
            whole_response: wanted(Phase::WholeResponse)
                .map(|()| whole_response_handler::GuestIndices::new(pre))
                .transpose()?,
            response_body: wanted(Phase::ResponseBody)
                .map(|()| response_body_handler::GuestIndices::new(pre))
                .transpose()?,
            finish: wanted(Phase::Finish).map(|()| finish_handler::GuestIndices::new(pre)).transpose()?,
        })
    }

    guests! {
        request: request_handler,
        whole_request: whole_request_handler,
        request_body: request_body_handler,
        response: response_handler,
        whole_response: whole_response_handler,
        response_body: response_body_handler,
        finish: finish_handler,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_stand_in_their_order_and_are_found_by_their_interface() {
        for (place, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, place);
            assert_eq!(Phase::of_interface(phase.interface()), Some(phase));
        }
        assert_eq!(Phase::of_interface("beamline:edge/log@0.1.0"), None);
    }
}
