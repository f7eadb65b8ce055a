//! Shares of the traffic, in hundredths of a percent.

use serde::{Deserialize, Deserializer, de::Error};

use crate::point::POINTS;

/// Upstreams with their shares, which together are at most 100%.
#[derive(Deserialize)]
#[serde(try_from = "Vec<Share>")]
pub(crate) struct Split(Vec<Share>);

/// An upstream's share.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    upstream: String,
    #[serde(rename = "percent", deserialize_with = "points")]
    points: u32,
}

impl Split {
    /// The upstream whose share holds a point, or none where the shares end before it.
    pub(crate) fn at(&self, point: u32) -> Option<&str> {
        let mut end = 0;
        let holder = self.0.iter().find(|share| {
            end += share.points;
            point < end
        });
        holder.map(|share| share.upstream.as_str())
    }
}

impl TryFrom<Vec<Share>> for Split {
    type Error = &'static str;

    fn try_from(shares: Vec<Share>) -> Result<Self, Self::Error> {
        let sum = shares.iter().fold(0, |sum: u32, share| sum.saturating_add(share.points));
        if sum > POINTS {
            return Err("expected shares of at most 100 percent together, found more");
        }
        Ok(Self(shares))
    }
}

/// Percent, with at most two decimals, as points.
fn points<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let percent = f64::deserialize(deserializer)?;
    let points = percent * 100.0;
    let whole = points + 0.5;
    if !(0.0..=100.0).contains(&percent) || (points - f64::from(whole as u32)).abs() > 1e-6 {
        return Err(D::Error::custom("expected 0 to 100 with at most two decimals"));
    }
    Ok(whole as u32)
}
