import { createHmac } from 'node:crypto';

/**
 * The headers of the Standard Webhooks specification 1.0.0, "Signature scheme": HMAC-SHA256 over id, time and body. While a
 * secret is being replaced there is a signature of each, for receivers that have the new one and those that have not.
 */
export function signedHeaders(
  id: string,
  at: number,
  payload: string,
  secrets: readonly Uint8Array[],
): Record<string, string> {
  const timestamp = String(Math.floor(at / 1_000));
  const signatures = secrets.map(
    (secret) => `v1,${createHmac('sha256', secret).update(`${id}.${timestamp}.${payload}`).digest('base64')}`,
  );
  return { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signatures.join(' ') };
}
