import type { ErrorReason } from '../domain/errors.ts';

/** What the shell is told. Documented by `leasehold help exit-codes`; scripts rely on the numbers. */
export const exitCodes = {
  ok: { code: 0, meaning: 'done' },
  unexpected: { code: 1, meaning: 'something unforeseen; the message holds what is known' },
  usage: { code: 2, meaning: 'a command, option or field that cannot be understood' },
  unauthenticated: { code: 3, meaning: 'no attestation, or one that the broker does not accept' },
  permissionDenied: { code: 4, meaning: 'the caller does not have the role that the call needs' },
  notFound: { code: 5, meaning: 'no such task, lease, approval or signal that this caller may see' },
  refused: {
    code: 6,
    meaning: 'denied by policy or by people, needs approval, or the state of the task or lease does not allow it',
  },
  unavailable: {
    code: 7,
    meaning: 'the broker, its database or the target cannot be reached, or is not ready; try again',
  },
  deadline: { code: 8, meaning: 'no answer in time; try again with the same --request-id' },
  configInvalid: { code: 9, meaning: 'leasehold.yaml or the policy directory is invalid; nothing was started' },
  databaseNewer: { code: 10, meaning: 'the database was migrated by a newer release; run that release' },
  databaseBehind: { code: 11, meaning: 'the database has migrations missing; run leasehold migrate' },
  unsettled: { code: 12, meaning: 'the task is closed for new credentials, but some lease has no good outcome yet' },
  differs: {
    code: 13,
    meaning: 'reconcile: a target holds credentials that no lease owns, or lacks some that an active lease has',
  },
  interrupted: { code: 130, meaning: 'ended by Ctrl-C' },
  outputClosed: { code: 141, meaning: 'whoever read the output went away' },
} as const;

export type ExitName = keyof typeof exitCodes;

/** Reasons whose status code alone would say too little, or something else than what a script wants to know. */
const byReason: Partial<Record<ErrorReason, ExitName>> = {
  POLICY_DENIED: 'refused',
  POLICY_INVALID: 'configInvalid',
  TOO_LARGE: 'usage',
  APPROVER_INELIGIBLE: 'refused',
};

/** By the names of google.rpc.Code in lower case, as Connect writes them. */
const byStatus: Record<string, ExitName> = {
  invalid_argument: 'usage',
  out_of_range: 'usage',
  unimplemented: 'usage',
  unauthenticated: 'unauthenticated',
  permission_denied: 'permissionDenied',
  not_found: 'notFound',
  failed_precondition: 'refused',
  already_exists: 'refused',
  aborted: 'refused',
  unavailable: 'unavailable',
  resource_exhausted: 'unavailable',
  deadline_exceeded: 'deadline',
};

export function exitNameOf(status: string, reason: string | undefined): ExitName {
  return byReason[reason as ErrorReason] ?? byStatus[status] ?? 'unexpected';
}
