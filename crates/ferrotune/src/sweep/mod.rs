//! A grid of runs over one recipe: which learning rate, rank or target modules serve this data best.
//!
//! [`Sweep::new`] makes a trial of every combination of the values of its [`Axis`]es, and looks at all of them before the first is run.
//! [`Sweep::run`] runs them one after the other on one frozen model and one set of tokens in memory. A trial is a whole run with a folder
//! of its own in the recipe's `output_dir`, `learning_rate=1e-4,r=8`, down to the bytes of its adapter the same as if it were made alone.
//! A sweep that was left, or whose grid has grown, goes on with what is not done yet.
//!
//! `sweep.json` and `sweep.html` beside the folders hold the results so far, the page with the best first; see
//! [`SweepReport`](crate::report::SweepReport).
//!
//! ```no_run
//! use ferrotune::{job::{ForPeople, Observer}, progress::Progress, recipe::Recipe, report::sweep_table, sweep::Sweep};
//! use std::sync::Arc;
//!
//! let recipe = Recipe::load("recipe.toml", &[])?;
//! let axes = ["training.learning_rate=1e-4,3e-4,1e-3".parse()?, "lora.r=8,16".parse()?];
//! let stop = Arc::default();
//! let mut observer = ForPeople::new(Progress::stderr(), Arc::clone(&stop));
//! let outcome = Sweep::new(&recipe, &axes)?.run(&mut observer, stop)?;
//! println!("{}", sweep_table(&outcome.report));
//! # Ok::<(), ferrotune::Error>(())
//! ```

mod axis;
mod grid;
mod run;

pub use axis::Axis;
pub use grid::{Sweep, Trial};
pub use run::SweepOutcome;
