import type { KeyBinding } from './model.ts';
import type { SenderConstraint } from './policy.ts';

/** What policy calls a credential that is bound like this. */
export function constraintOf(binding: KeyBinding | undefined): SenderConstraint | undefined {
  if (binding === undefined) return undefined;
  return binding.jkt === undefined ? 'mtls' : 'dpop';
}

export function sameBinding(a: KeyBinding | undefined, b: KeyBinding | undefined): boolean {
  return a?.jkt === b?.jkt && a?.['x5t#S256'] === b?.['x5t#S256'];
}

/** The field of a request that binds like this; for errors. */
export function bindingField(binding: KeyBinding | undefined): 'dpop_proof' | 'bind_to_certificate' {
  return constraintOf(binding) === 'mtls' ? 'bind_to_certificate' : 'dpop_proof';
}
