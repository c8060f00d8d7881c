//! A parsed template.

/// An index into [`Tree::names`].
pub(super) type Name = u32;

/// A whole template. Loops and macros stand in lists of their own, because values refer to them.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) body: Vec<Node>,
    pub(super) names: Vec<String>,
    pub(super) loops: Vec<For>,
    pub(super) macros: Vec<Macro>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: u32,
    pub(super) kind: Stmt,
}

#[derive(Debug)]
pub(super) enum Stmt {
    Data(String),
    Print(Expr),
    For(usize),
    /// Conditions with their bodies, and what else.
    If(Vec<(Expr, Vec<Node>)>, Vec<Node>),
    Set(Target, Expr),
    SetBlock(Target, Vec<Filter>, Vec<Node>),
    With(Vec<(Target, Expr)>, Vec<Node>),
    Macro(usize),
    /// The call, and the macro that its `caller` is.
    Call(Expr, usize),
    FilterBlock(Vec<Filter>, Vec<Node>),
    /// A body with variables of its own.
    Scope(Vec<Node>),
    /// The same, of `{% autoescape %}`.
    AutoEscape(Expr, Vec<Node>),
    Break,
    Continue,
    /// A statement that needs other templates, of which there are none.
    NoLoader,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) iter: Expr,
    pub(super) test: Option<Expr>,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
    pub(super) recursive: bool,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: String,
    pub(super) args: Vec<(Name, Option<Expr>)>,
    pub(super) body: Vec<Node>,
    pub(super) uses: Uses,
}

/// Which of the special variables the body of a macro reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    pub(super) caller: bool,
    pub(super) kwargs: bool,
    pub(super) varargs: bool,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    Attribute(Name, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Filter {
    pub(super) name: String,
    pub(super) args: CallArgs,
    pub(super) line: u32,
}

#[derive(Debug, Default)]
pub(super) struct CallArgs {
    pub(super) positional: Vec<Expr>,
    pub(super) keywords: Vec<(String, Expr)>,
    pub(super) star: Option<Expr>,
    pub(super) star_star: Option<Expr>,
}

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: Box<Kind>,
    pub(super) line: u32,
    /// Levels of expressions below and including this one.
    pub(super) depth: u16,
}

#[derive(Clone, Debug)]
pub(super) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Kind {
    Const(Const),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Expr, String),
    Item(Expr, Expr),
    Slice(Expr, Option<Expr>, Option<Expr>, Option<Expr>),
    Call(Expr, CallArgs),
    Filter(Expr, Filter),
    Test(Expr, String, CallArgs),
    Not(Expr),
    Neg(Expr),
    Pos(Expr),
    Binary(Op, Expr, Expr),
    Concat(Vec<Expr>),
    And(Expr, Expr),
    Or(Expr, Expr),
    Compare(Expr, Vec<(Comparison, Expr)>),
    If(Expr, Expr, Option<Expr>),
}
