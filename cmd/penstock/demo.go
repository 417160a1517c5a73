package main

func demoCommand(args []string) error { return nil }
