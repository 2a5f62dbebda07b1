from lambdanet.cli import main

if __name__ == "__main__":  # a process that `doctor` starts imports this
    main()
