"""What `./nomyo` runs, from any folder: ours is the one above this one."""

import sys

if __name__ == "__main__":
    sys.path[0] = sys.path[0].rpartition("/")[0]

    from commands import main

    main()
