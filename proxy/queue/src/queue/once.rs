//! Requests that come again under an `Idempotency-Key`: who was first, and what its receipt is.

use std::sync::Arc;

use super::{Queue, QueueError};
use crate::{
    Fingerprint, KeyClaim, KeyedUse, Receipt,
    claims::Claiming,
    idempotency::{Holder, KeyScope},
    log::LogError,
};

/// What a look at a client's key found.
#[derive(Debug)]
pub enum KeyLook {
    /// No record has it, and it is claimed for this request, where that was asked for: until the claim is dropped, or its
    /// record gives the key up, others find it in use.
    Free(Option<KeyClaim>),
    /// Another request that uses it is under way.
    InUse,
    /// A record has it.
    Used(UsedKey),
}

/// A key that a record has.
#[derive(Clone, Debug)]
pub struct UsedKey {
    receipt: Receipt,
    fingerprint: Fingerprint,
}

impl UsedKey {
    /// The receipt of its record, for a request that is the same; none for another one.
    pub fn receipt(&self, request: &Fingerprint) -> Option<&Receipt> {
        (self.fingerprint == *request).then_some(&self.receipt)
    }
}

impl Queue {
    /// Looks whether a client's key was used so before, and claims it where `claims` is set and it was not. Costs a hash
    /// and a look-up, and a read of the log only where a record has the key.
    ///
    /// A record has its key as long as it may be delivered, was, or may have been (dead, indeterminate), until it is
    /// deleted. What is dead for another reason has given it up.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn look_up_key(&self, what: &KeyedUse<'_>, claims: bool) -> Result<KeyLook, QueueError> {
        // Beside another process the log alone knows what records have.
        let (index, is_complete) = (&self.0.books.claims, self.is_alone());
        if !claims && is_complete && index.is_unused() {
            return Ok(KeyLook::Free(None));
        }
        let scope = self.0.node_key.scope(what);
        let mut claimed = None;
        if claims {
            match index.claim(scope, false) {
                Claiming::Claimed(claim) if is_complete => return Ok(KeyLook::Free(Some(claim))),
                Claiming::Claimed(claim) => claimed = Some(claim),
                Claiming::InUse => return Ok(KeyLook::InUse),
                Claiming::Kept => {}
            }
        } else if is_complete && !index.is_kept(&scope) {
            return Ok(KeyLook::Free(None));
        }
        if let Some(Holder { id, fingerprint }) = self.holder(scope).await? {
            let receipt = self.0.node_key.receipt(id, &scope);
            return Ok(KeyLook::Used(UsedKey { receipt, fingerprint }));
        }
        if claimed.is_some() {
            return Ok(KeyLook::Free(claimed));
        }
        // It was given up in this moment, or belongs to a scope that begins alike.
        Ok(match claims.then(|| index.claim(scope, true)) {
            Some(Claiming::Claimed(claim)) => KeyLook::Free(Some(claim)),
            Some(Claiming::InUse | Claiming::Kept) => KeyLook::InUse,
            None => KeyLook::Free(None),
        })
    }

    /// Whether any record has a client's key, or may have one that another process accepted.
    pub fn has_used_keys(&self) -> bool {
        !self.0.books.claims.is_unused() || !self.is_alone()
    }

    /// As if the index had lost what records have: then the log alone knows.
    #[cfg(test)]
    pub(crate) fn lose_index(&self) {
        self.0.books.claims.recount(&[]);
    }

    async fn holder(&self, scope: KeyScope) -> Result<Option<Holder>, LogError> {
        // A place among those who ask for receipts: they are as many, and as little known.
        let closed = |_| LogError::Failed("the queue is closed".into());
        let _place = Arc::clone(&self.0.receipts).acquire_owned().await.map_err(closed)?;
        self.0.reader.look(move |log| log.holder(&scope)).await
    }
}
