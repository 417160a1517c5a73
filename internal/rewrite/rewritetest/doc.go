// Package rewritetest holds what translators are tested with: a generator of packets and rules that has all the odd
// layouts in it, and a translation that is too simple to be wrong in the same way. It serves package rewrite and its
// twin in XDP alike.
//
// The trap: a Generator writes each frame over the one before. Copy what must last.
package rewritetest
