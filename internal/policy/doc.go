// Package policy judges by rules with expressions: an ordered list of "if this,
// then deny" over the fields that a stage knows, in the Common Expression
// Language (CEL). Expressions are checked, typed and priced when a configuration
// is loaded; what could cost too much does not start.
//
// Its one trap: a rule that cannot be evaluated refuses. Fields are foreign
// bytes, and a rule that fails open is one that they can switch off.
package policy
