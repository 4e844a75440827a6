import type { Millis } from '../../domain/time.ts';

export interface FailureDetails {
  /** HTTP status of Vault's answer; undefined when there was none. */
  status?: number | undefined;
  /**
   * What became of the call. `unsent`: Vault has not seen it. `refused`: Vault has answered that it did not do it. `unknown`:
   * it may have done it.
   */
  outcome: 'unsent' | 'refused' | 'unknown';
  /** What Vault said, cut and cleaned. */
  said?: string;
  retryAfterMs?: Millis | undefined;
}

/** A call to Vault that gave nothing. Its message may be logged: it holds the path, which is no secret, and no body. */
export class VaultFailure extends Error {
  override readonly name = 'VaultFailure';
  readonly status: number | undefined;
  readonly outcome: FailureDetails['outcome'];
  readonly said: string;
  readonly retryAfterMs: Millis | undefined;

  constructor(message: string, details: FailureDetails) {
    super(message);
    this.status = details.status;
    this.outcome = details.outcome;
    this.said = details.said ?? '';
    this.retryAfterMs = details.retryAfterMs;
  }
}

/** Tokens of every kind, old and new, of Vault and OpenBao; and what a database's error may quote of a statement. */
const tokens = /\b(?:hvs|hvb|hvr|s|b|r)\.[A-Za-z0-9_-]{20,}/g;
const quoted = /\b(PASSWORD|IDENTIFIED BY|secret|password|token)(\s*[=:]?\s*)(['"])[^'"]*\3/gi;

/** The first of Vault's `errors`, without what may not be repeated. */
export function saidBy(body: unknown, secrets: readonly (string | undefined)[] = []): string {
  const errors = (body as { errors?: unknown } | undefined)?.errors;
  if (!Array.isArray(errors)) return '';
  let text = errors
    .filter((error): error is string => typeof error === 'string')
    .join('; ')
    .replaceAll(/\s+/g, ' ');
  for (const secret of secrets) if (secret !== undefined && secret !== '') text = text.replaceAll(secret, '[secret]');
  return text.replaceAll(tokens, '[token]').replaceAll(quoted, '$1$2[secret]').slice(0, 300);
}

export function asFailure(error: unknown): VaultFailure | undefined {
  return error instanceof VaultFailure ? error : undefined;
}
