from tljupyter.cli import main

raise SystemExit(main())
