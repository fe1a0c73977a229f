from minidiff.cli import main

main()
