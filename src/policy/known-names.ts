export interface KnownNames {
  /** Targets of the configuration; without it any target name will do. */
  knownTargets?: ReadonlySet<string>;
  /** Vault servers of the configuration; without it any name will do. */
  knownVaults?: ReadonlySet<string>;
  /** Trust domains that callers can be of (undefined: workloads without a scheme); without it any will do. */
  knownTrustDomains?: ReadonlySet<string | undefined>;
  /** The configuration's `environment`; without it any name will do in a condition, and none has a value. */
  environment?: Readonly<Record<string, string>>;
}
