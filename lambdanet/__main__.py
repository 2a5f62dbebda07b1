from lambdanet.cli import main

main()
