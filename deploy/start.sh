# Clone the project (REPOSITORY, with the DVC remote DVC_REMOTE) unless it is there, then become its worker.
set -eu
folder=${LAMBDANET_CLONE:-$HOME/lambdanet}
if [ ! -d "$folder/.dvc" ]; then
    git clone --quiet "${REPOSITORY:?the address of the git repository}" "$folder"
    cd "$folder"
    [ -z "${DVC_REMOTE:-}" ] || dvc remote add --local --default lab "$DVC_REMOTE"
fi
cd "$folder"
export PYTHONPATH="$folder"
exec python -m lambdanet cluster "$@"
