import { BrokerError } from '../../domain/errors.ts';

/** A failure at a target, told in the broker's words. Holds no query text, no parameter and no secret. */
export class TargetError extends Error {
  override readonly name = 'TargetError';
  readonly sqlstate: string | undefined;

  constructor(message: string, sqlstate?: string) {
    super(message);
    this.sqlstate = sqlstate;
  }
}

export function sqlstateOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) ? code : undefined;
}

/**
 * A copy that can be logged: the driver's error object carries fields of the server's answer (and a syntax error quotes
 * the statement), so only code and message are kept, and `secrets` are cut out of the message.
 */
export function withoutSecrets(error: unknown, secrets: readonly string[]): TargetError {
  let message = error instanceof Error ? error.message : String(error);
  const code = (error as { code?: unknown } | null)?.code;
  if (message === '' && typeof code === 'string') message = code;
  for (const secret of secrets) if (secret !== '') message = message.replaceAll(secret, '[secret]');
  // A quoted statement may be cut anywhere, also within the verifier.
  message = message.replaceAll(/SCRAM-SHA-256\S*/g, '[secret]').slice(0, 500);
  const sqlstate = sqlstateOf(error);
  return new TargetError(sqlstate === undefined ? message : `${message} (SQLSTATE ${sqlstate})`, sqlstate);
}

/** For the caller of an issue: what to do next, by the class of the failure. */
export function issueError(error: unknown, target: string, group: string, secrets: readonly string[]): BrokerError {
  if (error instanceof BrokerError) return error;
  const cause = withoutSecrets(error, secrets);
  return new BrokerError('PROVIDER_UNAVAILABLE', issueAdvice(cause.sqlstate, target, group), { cause });
}

function issueAdvice(sqlstate: string | undefined, target: string, group: string): string {
  switch (sqlstate) {
    case '42704':
      return `target ${target} has no role ${group}: the tool's owner has to create it or correct the tier's groupRole`;
    case '42501':
      return `the broker's login at target ${target} may not create this login: the tool's owner has to grant it CREATEROLE, and ${group} WITH ADMIN OPTION to the target's grantor (to the login itself where the target names none)`;
    case '42601':
      return `target ${target} does not understand the tier's create statements: the tool's owner has to correct them`;
    case '28P01':
    case '28000':
      return `target ${target} refuses the broker's own login: an operator has to correct its credentials`;
    case '22012':
    case '57014':
      return `target ${target} was too slow and nothing was issued; retry with the same request_id`;
    default:
      return `target ${target} cannot be reached or refused, and nothing was issued; retry with the same request_id`;
  }
}
