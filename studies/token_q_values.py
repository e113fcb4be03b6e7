"""The soft Bellman equation of App. D where it can be solved exactly: trees of several shapes, several betas, float64.

    make token-q-checks

Random references, policies and rewards. The optimal policy by backward induction (Eq. 8 and 9) against its closed form,
pi_ref exp(r / beta) / Z; the values that any policy implies, in Eq. 8; those values against backward induction from the
rewards that the policy implies.
"""

import argparse

import pandas as pd

from overopt.theory.soft_bellman import check_trees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", nargs="+", type=float, default=[0.01, 0.05, 0.1, 0.5, 1.0, 10.0])
    parser.add_argument("--branchings", nargs="+", type=int, default=[2, 3, 10])
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    checks = check_trees(options.branchings, options.depths, options.betas, options.seed)
    table = pd.DataFrame(
        [
            {"branching": branching, "depth": depth, "beta": beta, **check._asdict()}
            for (branching, depth, beta), check in checks.items()
        ]
    )
    print(table.to_string(index=False, float_format="{:.2g}".format))
    print(f"optimal policy against its closed form: within {table['policy_nats'].max():.1e} nats")
    print(f"implied values against backward induction: within {table['induction'].max():.1e} of reward")
    print(
        f"largest residual of the soft Bellman equation over {len(table)} trees and betas: "
        f"{table['bellman'].max():.1e} of reward, {(table['bellman'] / table['beta']).max():.1e} nats"
    )


if __name__ == "__main__":
    main()
