//! Each error, reached.

use ferrotune_precision::{ComputeDtype, DtypePolicy, Error, parse_device};

#[test]
fn dtypes_and_devices_that_are_not_there_are_errors_of_their_own() {
    assert!(
        matches!("f64".parse::<ComputeDtype>(), Err(Error::UnknownDtype { found, .. }) if found == "f64")
    );
    for dtype in [ComputeDtype::Bf16, ComputeDtype::F16] {
        let error = DtypePolicy::for_compute(dtype).unwrap_err();
        assert!(matches!(error, Error::DtypeNotOffered { dtype: found, .. } if found == dtype));
    }
    assert!(matches!(parse_device("gpu"), Err(Error::UnknownDevice { .. })));
    assert!(matches!(parse_device("cuda:4095"), Err(Error::DeviceNotAvailable { .. })));
}
