//! Which modules of a model get an adapter: PEFT's rules.

use crate::config::{ExcludeModules, LoraConfig, TargetModules};
use crate::error::{Error, Result};
use crate::pattern;
use regex::Regex;
use std::collections::{BTreeSet, HashSet};

/// Lists of this length and more are replaced by the shortest suffixes that tell the targets from all other modules, as PEFT does.
const MINIMAL_SUFFIXES_FROM: usize = 20;

/// A linear layer of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Dotted path, with Hugging Face's names: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Size of its input.
    pub in_features: i64,
    /// Size of its output.
    pub out_features: i64,
    /// Whether it maps hidden states to the vocabulary (`lm_head`); `"all-linear"` leaves it out.
    pub is_output_head: bool,
}

/// Whether `config` targets the linear layer at `path`.
///
/// In this order: `exclude_modules`; a string in `target_modules` matches the whole path (Python's `re.fullmatch`); a name matches the
/// whole path or what follows a dot, and then also has to lie in one of `layers_to_transform`. `"all-linear"` takes every path: leave
/// the output head to [`select_targets`].
///
/// ```
/// use ferrotune_lora::{LoraConfig, matches};
/// let config = LoraConfig::default(); // q_proj and v_proj
/// assert!(matches(&config, "model.layers.0.self_attn.q_proj")?);
/// assert!(!matches(&config, "model.layers.0.self_attn.k_proj")?);
/// # Ok::<(), ferrotune_lora::Error>(())
/// ```
///
/// # Errors
/// [`Error::Pattern`] for a pattern that is not valid or that linear-time matching cannot express.
pub fn matches(config: &LoraConfig, path: &str) -> Result<bool> {
    Ok(Matcher::new(config)?.decide(path) == Decision::Targeted)
}

/// The indices of the modules that get an adapter, in the given order.
///
/// # Errors
/// [`Error::NoTarget`] if there are none, with the suffixes that there are; [`Error::NotLinear`] if a target is a module that holds
/// layers; whatever [`LoraConfig::validate`] finds.
pub fn select_targets(config: &LoraConfig, modules: &[ModuleInfo]) -> Result<Vec<usize>> {
    config.validate()?;
    // PEFT shortens the list before it matches.
    let effective =
        LoraConfig { target_modules: effective_target_modules(config, modules, &[])?, ..config.clone() };
    let matcher = Matcher::new(&effective)?;
    let targets = format!("`target_modules` = {}", config.target_modules);
    for container in containers(modules) {
        if matcher.decide(container) == Decision::Targeted {
            let inside = |module: &&ModuleInfo| {
                module.path.strip_prefix(container).is_some_and(|rest| rest.starts_with('.'))
            };
            let example = modules.iter().find(inside).map(|module| module.path.clone()).unwrap_or_default();
            return Err(Error::NotLinear { targets, path: container.to_owned(), example });
        }
    }

    let decisions: Vec<Decision> = modules.iter().map(|module| matcher.decide(&module.path)).collect();
    let selected: Vec<usize> =
        (0..modules.len()).filter(|&index| decisions[index] == Decision::Targeted).collect();
    if selected.is_empty() {
        let note = narrowed_by(config, decisions.contains(&Decision::Excluded));
        return Err(Error::NoTarget { targets, note, available: suffixes(modules) });
    }
    warn_of_idle_entries(config, modules, &selected)?;
    Ok(selected)
}

/// The `target_modules` to write to `adapter_config.json` for a model with these linear layers, so that every reader takes the same
/// layers: `"all-linear"` becomes names, and 20 names and more become the shortest suffixes that single them out.
///
/// `others` are the paths of the model's other modules (embeddings, norms), if there are any that a suffix could hit by mistake; what
/// holds the linear layers need not be listed.
///
/// # Errors
/// [`Error::NoTarget`] if `"all-linear"` finds no layer.
pub fn effective_target_modules(
    config: &LoraConfig,
    modules: &[ModuleInfo],
    others: &[&str],
) -> Result<TargetModules> {
    let names: Vec<String> = match &config.target_modules {
        TargetModules::Pattern(_) => return Ok(config.target_modules.clone()),
        TargetModules::Names(names) => names.clone(),
        TargetModules::AllLinear => {
            modules.iter().filter(|module| !module.is_output_head).map(|module| module.path.clone()).collect()
        }
    };
    if names.is_empty() {
        let targets = format!("`target_modules` = {}", config.target_modules);
        return Err(Error::NoTarget { targets, note: String::new(), available: suffixes(modules) });
    }
    let targets: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    if targets.len() >= MINIMAL_SUFFIXES_FROM && !targets.contains("") {
        let paths = modules.iter().map(|module| module.path.as_str());
        let rest: Vec<&str> = paths
            .chain(containers(modules))
            .chain(others.iter().copied())
            .filter(|path| !is_named(&targets, path))
            .collect();
        let minimal = minimal_suffixes(&targets, &rest);
        if minimal.len() < targets.len() {
            return Ok(TargetModules::Names(minimal));
        }
    }
    Ok(TargetModules::Names(names))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Targeted,
    Unmatched,
    Excluded,
}

/// A configuration's rules with the patterns compiled.
pub(crate) struct Matcher<'a> {
    targets: Rule<'a>,
    excluded: Option<Rule<'a>>,
    layers: Option<(&'a [u64], Vec<Regex>)>,
}

enum Rule<'a> {
    Names(BTreeSet<&'a str>),
    Pattern(Regex),
    All,
}

impl<'a> Matcher<'a> {
    pub(crate) fn new(config: &'a LoraConfig) -> Result<Self> {
        let names = |names: &'a [String]| Rule::Names(names.iter().map(String::as_str).collect());
        let targets = match &config.target_modules {
            TargetModules::Names(list) => names(list),
            TargetModules::Pattern(text) => Rule::Pattern(pattern::full_match("target_modules", text)?),
            TargetModules::AllLinear => Rule::All,
        };
        let excluded = match &config.exclude_modules {
            Some(ExcludeModules::Names(list)) => Some(names(list)),
            // An empty string is PEFT's "nothing".
            Some(ExcludeModules::Pattern(text)) if !text.is_empty() => {
                Some(Rule::Pattern(pattern::full_match("exclude_modules", text)?))
            }
            _ => None,
        };
        let layers = match config.layers_to_transform.as_deref() {
            None | Some([]) => None,
            Some(indices) => {
                let words = config.layers_pattern.as_deref().unwrap_or_default();
                // Any word, and the first number (a later one may be an expert's). PEFT reads "" like an absent pattern.
                let patterns = if words.is_empty() || words == [""] {
                    Regex::new(r"\A.*?\.[^.]*\.(?P<idx>\d+)\.").map(|regex| vec![regex]).map_err(|error| {
                        Error::Pattern {
                            key: "layers_pattern".into(),
                            pattern: String::new(),
                            reason: error.to_string(),
                        }
                    })?
                } else {
                    words
                        .iter()
                        .map(|word| pattern::layer_index("layers_pattern", word))
                        .collect::<Result<_>>()?
                };
                Some((indices, patterns))
            }
        };
        Ok(Self { targets, excluded, layers })
    }

    pub(crate) fn decide(&self, path: &str) -> Decision {
        match &self.excluded {
            Some(Rule::Names(names)) if is_named(names, path) => return Decision::Excluded,
            Some(Rule::Pattern(regex)) if regex.is_match(path) => return Decision::Excluded,
            _ => {}
        }
        let targeted = match &self.targets {
            Rule::All => true,
            Rule::Pattern(regex) => regex.is_match(path),
            // A whole path is meant as it stands: the layer filter concerns suffixes alone.
            Rule::Names(names) => names.contains(path) || (is_named(names, path) && self.in_layers(path)),
        };
        if targeted { Decision::Targeted } else { Decision::Unmatched }
    }

    fn in_layers(&self, path: &str) -> bool {
        let Some((indices, patterns)) = &self.layers else { return true };
        patterns
            .iter()
            .find_map(|regex| regex.captures(path))
            .and_then(|captures| captures.name("idx")?.as_str().parse::<u64>().ok())
            .is_some_and(|index| indices.contains(&index))
    }
}

/// Whether `path`, or what follows one of its dots, is one of the names.
fn is_named(names: &BTreeSet<&str>, path: &str) -> bool {
    names.contains(path) || path.match_indices('.').any(|(dot, _)| names.contains(&path[dot + 1..]))
}

/// The paths of the modules that hold the given ones, and are not themselves given.
fn containers(modules: &[ModuleInfo]) -> BTreeSet<&str> {
    let linear: HashSet<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    modules
        .iter()
        .flat_map(|module| module.path.match_indices('.').map(|(dot, _)| &module.path[..dot]))
        .filter(|container| !linear.contains(container))
        .collect()
}

/// The suffixes of a dotted path, shortest first.
fn path_suffixes(path: &str) -> Vec<&str> {
    path.rmatch_indices('.').map(|(dot, _)| &path[dot + 1..]).chain([path]).collect()
}

/// The shortest suffixes that hit every target and none of the rest. Targets are visited in the order of their suffix lists, so that
/// the result is PEFT's.
fn minimal_suffixes(targets: &BTreeSet<&str>, rest: &[&str]) -> Vec<String> {
    let taken: HashSet<&str> = rest.iter().flat_map(|path| path_suffixes(path)).collect();
    let mut lists: Vec<Vec<&str>> = targets.iter().map(|target| path_suffixes(target)).collect();
    lists.sort();
    let mut required: BTreeSet<&str> = BTreeSet::new();
    for list in lists {
        for &suffix in &list {
            if required.contains(suffix) || taken.contains(suffix) {
                continue;
            }
            // Covered already by a suffix shorter than the whole path.
            if !list[..list.len() - 1].iter().any(|shorter| required.contains(shorter)) {
                required.insert(suffix);
                break;
            }
        }
    }
    required.into_iter().map(str::to_owned).collect()
}

fn narrowed_by(config: &LoraConfig, excluded: bool) -> String {
    let mut note = String::new();
    if excluded {
        note += " that `exclude_modules` leaves";
    }
    if let Some(layers) = config.layers_to_transform.as_ref().filter(|layers| !layers.is_empty()) {
        note += &format!(" in `layers_to_transform` = {layers:?}");
        if let Some(words) = config.layers_pattern.as_ref().filter(|words| !words.is_empty()) {
            note += &format!(" with `layers_pattern` = {words:?}");
        }
    }
    note
}

/// The distinct last parts of the modules' paths, for an error message.
fn suffixes(modules: &[ModuleInfo]) -> String {
    const SHOWN: usize = 30;
    let mut distinct = Vec::new();
    for module in modules {
        // A part that is a number alone says nothing: `net.0`.
        let suffix = path_suffixes(&module.path)
            .into_iter()
            .find(|suffix| !suffix.starts_with(|first: char| first.is_ascii_digit()))
            .unwrap_or(&module.path);
        if !distinct.contains(&suffix) {
            distinct.push(suffix);
        }
    }
    match distinct.len() {
        0 => "none".to_owned(),
        count if count > SHOWN => format!("{} and {} more", distinct[..SHOWN].join(", "), count - SHOWN),
        _ => distinct.join(", "),
    }
}

/// What is named and has no effect is likely misspelt. PEFT files may name more than a model has, so it is no error.
fn warn_of_idle_entries(config: &LoraConfig, modules: &[ModuleInfo], selected: &[usize]) -> Result<()> {
    let selected: Vec<&str> = selected.iter().map(|&index| modules[index].path.as_str()).collect();
    if let TargetModules::Names(names) = &config.target_modules {
        for name in names {
            let name_alone = BTreeSet::from([name.as_str()]);
            if !modules.iter().any(|module| is_named(&name_alone, &module.path)) {
                tracing::warn!(%name, available = %suffixes(modules), "an entry of `target_modules` matches no linear layer");
            }
        }
    }
    let patterns = (config.rank_pattern.iter().map(|(name, _)| ("rank_pattern", name)))
        .chain(config.alpha_pattern.iter().map(|(name, _)| ("alpha_pattern", name)));
    for (key, name) in patterns {
        let regex = pattern::suffix_match(key, name)?;
        if !selected.iter().any(|path| regex.is_match(path)) {
            tracing::warn!(%name, "an entry of `{key}` matches no layer with an adapter");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(path: &str) -> ModuleInfo {
        ModuleInfo { path: path.into(), in_features: 4, out_features: 6, is_output_head: path == "lm_head" }
    }

    fn llama(layers: usize) -> Vec<ModuleInfo> {
        let names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let names = names.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        (0..layers)
            .flat_map(|layer| names.clone().map(move |name| linear(&format!("model.layers.{layer}.{name}"))))
            .chain([linear("lm_head")])
            .collect()
    }

    fn names(list: &[&str]) -> TargetModules {
        TargetModules::Names(list.iter().map(|&name| name.into()).collect())
    }

    fn selected(config: &LoraConfig, modules: &[ModuleInfo]) -> Vec<String> {
        select_targets(config, modules)
            .unwrap()
            .into_iter()
            .map(|index| modules[index].path.clone())
            .collect()
    }

    #[test]
    fn names_match_whole_parts_of_a_path() {
        let config =
            LoraConfig { target_modules: names(&["proj", "1.mlp.up_proj", "lm_head"]), ..Default::default() };
        assert_eq!(selected(&config, &llama(2)), ["model.layers.1.mlp.up_proj", "lm_head"]);
    }

    #[test]
    fn exclusion_comes_first() {
        let config = LoraConfig {
            target_modules: names(&["q_proj"]),
            exclude_modules: Some(ExcludeModules::Pattern(r".*\.0\..*".into())),
            ..Default::default()
        };
        assert_eq!(selected(&config, &llama(2)), ["model.layers.1.self_attn.q_proj"]);
    }

    #[test]
    fn the_layer_filter_spares_whole_paths() {
        let config = LoraConfig {
            target_modules: names(&["q_proj", "model.layers.0.mlp.up_proj"]),
            layers_to_transform: Some(vec![2]),
            ..Default::default()
        };
        assert_eq!(
            selected(&config, &llama(3)),
            ["model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj"]
        );
        let by_word = LoraConfig { layers_pattern: Some(vec!["h".into()]), ..config };
        assert_eq!(selected(&by_word, &llama(3)), ["model.layers.0.mlp.up_proj"]);
    }

    #[test]
    fn all_linear_leaves_the_head_out_and_is_written_as_suffixes() {
        let config = LoraConfig { target_modules: TargetModules::AllLinear, ..Default::default() };
        let modules = llama(4);
        assert_eq!(select_targets(&config, &modules).unwrap().len(), 28);
        let written = effective_target_modules(&config, &modules, &["model.norm"]).unwrap();
        let expected = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
        assert_eq!(written, names(&expected));
        // 14 targets: below the limit the names stay whole.
        let TargetModules::Names(list) = effective_target_modules(&config, &llama(2), &[]).unwrap() else {
            panic!()
        };
        assert_eq!((list.len(), list[0].as_str()), (14, "model.layers.0.self_attn.q_proj"));
    }

    #[test]
    fn a_suffix_that_hits_another_module_grows() {
        let mut modules = llama(4);
        modules.push(linear("vision.q_proj"));
        let listed: Vec<String> = modules[..28].iter().map(|module| module.path.clone()).collect();
        let config = LoraConfig { target_modules: TargetModules::Names(listed), ..Default::default() };
        let written = effective_target_modules(&config, &modules, &["encoder.mlp.up_proj"]).unwrap();
        let TargetModules::Names(written) = written else { panic!() };
        assert!(written.contains(&"self_attn.q_proj".to_owned()) && !written.contains(&"q_proj".to_owned()));
        assert!(written.contains(&"0.mlp.up_proj".to_owned()), "{written:?}");
        assert_eq!(select_targets(&config, &modules).unwrap().len(), 28);
    }

    #[test]
    fn no_target_is_an_error_that_lists_what_there_is() {
        let config = LoraConfig { target_modules: names(&["query"]), ..Default::default() };
        let error = select_targets(&config, &llama(1)).unwrap_err().to_string();
        assert!(
            error.contains("query") && error.contains("q_proj, k_proj") && error.contains("lm_head"),
            "{error}"
        );
        let config = LoraConfig { layers_to_transform: Some(vec![7]), ..Default::default() };
        let error = select_targets(&config, &llama(1)).unwrap_err().to_string();
        assert!(error.contains("layers_to_transform") && error.contains('7'), "{error}");
    }

    #[test]
    fn a_module_that_holds_layers_is_no_target() {
        for target in [names(&["mlp"]), TargetModules::Pattern(r"model\.layers\.0.*".into())] {
            let config = LoraConfig { target_modules: target, ..Default::default() };
            let error = select_targets(&config, &llama(2)).unwrap_err();
            assert!(
                matches!(&error, Error::NotLinear { path, .. } if path.starts_with("model.layers.0")),
                "{error}"
            );
        }
    }
}
