//! Prompts as a tree, in which what several of them begin with stands once.

use std::ops::Range;

/// A shared beginning that is shorter is computed by each prompt for itself: a node of its own would cost as much.
const SMALLEST_PREFIX: usize = 16;

/// Tokens that follow those of a parent: a beginning that several prompts share, or what one of them has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// The tokens before these, if there are any.
    pub parent: Option<usize>,
    /// A prompt that holds the tokens.
    pub prompt: usize,
    /// Their places in it.
    pub tokens: Range<usize>,
}

/// A prompt, and those that are equal to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Its last tokens, one at least: no other prompt has that node.
    pub node: usize,
    /// The prompts, in their order.
    pub prompts: Vec<usize>,
}

/// The tree: a node stands after its parent.
#[derive(Debug, Default)]
pub(super) struct PrefixTree {
    pub nodes: Vec<Node>,
    /// In the order of the prompts.
    pub leaves: Vec<Leaf>,
}

/// Different prompts, sorted, that all begin with the `depth` tokens of `parent` and its ancestors; equal ones are one.
struct Group<'a> {
    prompts: &'a [Vec<usize>],
    parent: Option<usize>,
    depth: usize,
}

impl PrefixTree {
    /// The tree of prompts, none of which is empty.
    pub fn of(prompts: &[Vec<i64>]) -> Self {
        let mut sorted: Vec<usize> = (0..prompts.len()).collect();
        sorted.sort_by_key(|&prompt| &prompts[prompt]);
        let distinct: Vec<Vec<usize>> =
            sorted.chunk_by(|&a, &b| prompts[a] == prompts[b]).map(<[usize]>::to_vec).collect();
        let mut tree = Self::default();
        // Not by recursion: prompts of which each begins with the one before would make it deep.
        let mut groups = vec![Group { prompts: &distinct, parent: None, depth: 0 }];
        while let Some(group) = groups.pop() {
            tree.divide(group, prompts, &mut groups);
        }
        tree.leaves.sort_by_key(|leaf| leaf.prompts[0]);
        tree
    }

    /// A node and its ancestors, the oldest first.
    pub fn path(&self, node: usize) -> Vec<usize> {
        let mut path: Vec<usize> =
            std::iter::successors(Some(node), |&node| self.nodes[node].parent).collect();
        path.reverse();
        path
    }

    /// Makes a node of what the whole group shares, and groups of those that share more.
    fn divide<'a>(&mut self, group: Group<'a>, prompts: &[Vec<i64>], groups: &mut Vec<Group<'a>>) {
        let Group { prompts: members, mut parent, mut depth } = group;
        let tokens = |member: &Vec<usize>| prompts[member[0]].as_slice();
        let (Some(first), Some(last)) = (members.first(), members.last()) else { return };
        if members.len() == 1 {
            let node = self.push(Node { parent, prompt: first[0], tokens: depth..tokens(first).len() });
            return self.leaves.push(Leaf { node, prompts: first.clone() });
        }
        // They are sorted: what the first and the last share, all do.
        let shared = tokens(first).iter().zip(tokens(last)).take_while(|(a, b)| a == b).count();
        // The last token of a prompt stays its own, for what it predicts.
        let end = shared.min(tokens(first).len() - 1);
        if end - depth >= SMALLEST_PREFIX {
            parent = Some(self.push(Node { parent, prompt: first[0], tokens: depth..end }));
            depth = end;
        }
        // The first may be all that they share; after that many tokens, no two parts of the group share one more.
        let parts = members.chunk_by(|a, b| tokens(a).get(shared) == tokens(b).get(shared));
        groups.extend(parts.map(|prompts| Group { prompts, parent, depth }));
    }

    fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tokens from the root to a node.
    fn spelled(tree: &PrefixTree, prompts: &[Vec<i64>], node: usize) -> Vec<i64> {
        let part = |node: usize| &prompts[tree.nodes[node].prompt][tree.nodes[node].tokens.clone()];
        tree.path(node).into_iter().flat_map(part).copied().collect()
    }

    fn tokens(tree: &PrefixTree) -> usize {
        tree.nodes.iter().map(|node| node.tokens.len()).sum()
    }

    #[test]
    fn what_prompts_begin_with_stands_once() {
        let prompt = |parts: &[(i64, usize)]| -> Vec<i64> {
            parts.iter().flat_map(|&(token, count)| vec![token; count]).collect()
        };
        let prompts = [
            prompt(&[(1, 20), (2, 30), (3, 5)]),
            prompt(&[(1, 20), (2, 30)]), // the beginning of the one before
            prompt(&[(1, 20), (4, 2)]),
            prompt(&[(5, 3)]),
            prompt(&[(1, 20), (2, 30)]),
            prompt(&[(5, 3), (6, 1)]), // shares too little
        ];
        let tree = PrefixTree::of(&prompts);
        // 20; 29 more; and apart 6, 1, 2, 3, 4.
        assert_eq!(tokens(&tree), 20 + 29 + 6 + 1 + 2 + 3 + 4);
        let leaves: Vec<&[usize]> = tree.leaves.iter().map(|leaf| &*leaf.prompts).collect();
        assert_eq!(leaves, [&[0][..], &[1, 4], &[2], &[3], &[5]]);
        assert_eq!(tree.path(tree.leaves[0].node).len(), 3);
        assert_eq!(tree.nodes[tree.leaves[1].node].tokens, 49..50);
    }

    #[test]
    fn prompts_that_grow_by_little_make_a_deep_tree_of_few_tokens() {
        let prompts: Vec<Vec<i64>> = (1..2000).map(|length| vec![7; length]).collect();
        let tree = PrefixTree::of(&prompts);
        assert!(tokens(&tree) < 2000 * 20, "{}", tokens(&tree));
    }

    proptest! {
        #[test]
        fn every_leaf_spells_its_prompts(
            parts in prop::collection::vec(prop::collection::vec((0i64..3, 1usize..30), 1..4), 1..12)
        ) {
            let prompts: Vec<Vec<i64>> = parts
                .iter()
                .map(|parts| parts.iter().flat_map(|&(token, count)| vec![token; count]).collect())
                .collect();
            let tree = PrefixTree::of(&prompts);
            let mut seen = vec![0; prompts.len()];
            for leaf in &tree.leaves {
                let spelled = spelled(&tree, &prompts, leaf.node);
                for &prompt in &leaf.prompts {
                    prop_assert_eq!(&spelled, &prompts[prompt]);
                    seen[prompt] += 1;
                }
                prop_assert!(tree.nodes.iter().all(|node| node.parent != Some(leaf.node)));
                prop_assert!(!tree.nodes[leaf.node].tokens.is_empty());
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
            prop_assert!(tree.leaves.is_sorted_by_key(|leaf| leaf.prompts[0]));
            for (index, node) in tree.nodes.iter().enumerate() {
                let before = node.parent.map_or(0, |parent| tree.nodes[parent].tokens.end);
                prop_assert_eq!(before, node.tokens.start);
                prop_assert!(node.parent.is_none_or(|parent| parent < index));
            }
        }
    }
}
