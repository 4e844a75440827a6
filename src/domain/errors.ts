/**
 * Every way in which the broker refuses, with the status code that goes with it. Names are those of
 * `leasehold.v1.ErrorReason` without the prefix; a test holds the two lists equal.
 */
const codes = {
  ATTESTATION_MISSING: 'unauthenticated',
  ATTESTATION_INVALID: 'unauthenticated',
  ATTESTATION_EXPIRED: 'unauthenticated',
  ISSUER_UNKNOWN: 'unauthenticated',
  KEYS_STALE: 'unavailable',
  ROLE_REQUIRED: 'permission_denied',
  FIELD_INVALID: 'invalid_argument',
  REQUEST_ID_REUSED: 'already_exists',
  TASK_NOT_FOUND: 'not_found',
  TASK_CLOSED: 'failed_precondition',
  LEASE_NOT_FOUND: 'not_found',
  LEASE_ENDED: 'failed_precondition',
  POLICY_DENIED: 'permission_denied',
  APPROVAL_REQUIRED: 'failed_precondition',
  NAME_UNKNOWN: 'invalid_argument',
  DEADLINE_TOO_CLOSE: 'failed_precondition',
  STORAGE_UNAVAILABLE: 'unavailable',
  PROVIDER_UNAVAILABLE: 'unavailable',
  IN_PROGRESS: 'unavailable',
  RATE_LIMITED: 'resource_exhausted',
  TOO_LARGE: 'resource_exhausted',
  SHUTTING_DOWN: 'unavailable',
  DEADLINE_EXCEEDED: 'deadline_exceeded',
  INTERNAL: 'internal',
  RENEWAL_REFUSED: 'failed_precondition',
  METHOD_UNKNOWN: 'unimplemented',
  CLOCK_SKEW: 'failed_precondition',
  APPROVAL_NOT_FOUND: 'not_found',
  APPROVAL_DENIED: 'failed_precondition',
  APPROVAL_EXPIRED: 'failed_precondition',
  APPROVAL_USED: 'failed_precondition',
  APPROVAL_MISMATCH: 'failed_precondition',
  APPROVAL_SETTLED: 'failed_precondition',
  APPROVER_INELIGIBLE: 'permission_denied',
  POLICY_INVALID: 'invalid_argument',
  POLICY_SOURCE: 'failed_precondition',
  POLICY_CHANGED: 'failed_precondition',
  REVISION_NOT_FOUND: 'not_found',
  DECISION_NOT_FOUND: 'not_found',
  CALL_NOT_FOUND: 'not_found',
  CALL_ENDED: 'failed_precondition',
  CALL_LIMIT: 'resource_exhausted',
  DELEGATION_REFUSED: 'permission_denied',
  SIGNAL_NOT_FOUND: 'not_found',
  ABANDON_REFUSED: 'failed_precondition',
  LOCKED: 'failed_precondition',
  LOCK_NOT_FOUND: 'not_found',
} as const;

export type ErrorReason = keyof typeof codes;
export type ErrorCode = (typeof codes)[ErrorReason];
export const errorReasons = Object.keys(codes) as readonly ErrorReason[];

/** One malformed field of a request: proto field path and what is wrong with it. */
export interface FieldViolation {
  field: string;
  description: string;
}

export interface BrokerErrorOptions {
  /** For operators only: logged, never sent. */
  cause?: unknown;
  violations?: FieldViolation[];
  /** Sent as `ErrorInfo.metadata`; never a secret. */
  metadata?: Record<string, string>;
  /** Sent as `google.rpc.RetryInfo`, milliseconds. */
  retryAfterMs?: number;
}

/**
 * The one error that the broker throws on purpose. `message` is for the caller: it says what to do next and holds no
 * secret. Anything else that is thrown reaches the caller as INTERNAL with an incident number.
 */
export class BrokerError extends Error {
  readonly reason: ErrorReason;
  readonly code: ErrorCode;
  readonly violations: readonly FieldViolation[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly retryAfterMs: number | undefined;

  constructor(reason: ErrorReason, message: string, options: BrokerErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'BrokerError';
    this.reason = reason;
    this.code = codes[reason];
    this.violations = options.violations ?? [];
    this.metadata = options.metadata ?? {};
    this.retryAfterMs = options.retryAfterMs;
  }
}

export function fieldInvalid(field: string, description: string): BrokerError {
  return new BrokerError('FIELD_INVALID', `${field}: ${description}`, { violations: [{ field, description }] });
}
